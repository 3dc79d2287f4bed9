"""The script language: surgery in lines that review well.

Source -> `parser` -> syntax tree (`ast`) -> `resolve` (names, passes, typed options) -> `surgery`, which plans on shapes alone or runs
on weights. `format` has the one canonical layout.
"""
