"""The pure core: functions over frozen dataclasses, no input or output, no clock, standard library only."""
