"""Trainings that differ in the value of one option."""
