"""Optuna's storages by URL: opened, made safe against killed writers, patient with lost connections. No torch."""
