"""The contracts between the engine and its drivers, one file each."""
