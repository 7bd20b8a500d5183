"""Runs a bundle: its functions by name on states that stay, by the evaluator or by Core ML.

It reads the manifest and the packages, and knows neither recipes nor how a package is made.
"""
