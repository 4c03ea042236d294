"""The files of published collections, from wherever they are."""
