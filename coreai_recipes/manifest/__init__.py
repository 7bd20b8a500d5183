"""What a bundle is, as a host finds it: manifest.json, typed, and one reader for all who open one. A leaf.

A bundle comes from somewhere: nothing in it is believed. Files are regular and inside its folder, their sizes are
bounded before they are read, and every fault is a sentence that names its place.
"""
