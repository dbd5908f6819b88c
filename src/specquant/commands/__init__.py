"""The commands, a few lines each: their options are their arguments, and the fields of dataclasses among these.

A docstring is a command's help. An argument or a field of type `Path` is a place below the folder that the user is in,
`Path | str` a name as it was given, a tuple a list with commas, a list an option that may be repeated.
"""
