"""Who runs which cell: Optuna's storages, claims, signs of life, cells given back."""
