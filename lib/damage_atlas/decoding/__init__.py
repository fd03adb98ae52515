"""Untrusted bytes to pixels. Nothing here imports the rest of the library: a child process must start fast.

faults.py     why a file cannot be used: the fixed list of reasons
facts.py      what is asked and answered
pictures.py   pictures: decode, inspect
metadata.py   EXIF: orientation, time, place
video.py      videos: which frames are looked at, and their pixels
child.py      the process in which all this happens
isolated.py   the caller's side: a crash or a hang of a decoder costs one file
"""
