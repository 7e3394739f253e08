"""The generator of Rooms: procedural furnished rooms, ray cast with Embree. Loads no torch.

Reading order: :mod:`.draw` (random numbers) → :mod:`.textures`, :mod:`.meshes`, :mod:`.style` → :mod:`.furniture`,
:mod:`.props`, :mod:`.shell` → :mod:`.layout` (furnishing) → :mod:`.camera` → :mod:`.caster` (rays) →
:mod:`.render` (light, labels) → :mod:`.generate` (all samples of a room).
"""
