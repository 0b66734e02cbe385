"""Trainings that are killed, disks that are full, folders that vanish."""
