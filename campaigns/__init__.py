"""Campaigns: spec -> plan -> run -> store -> results. Each arrow is a module; read in that order they tell the story."""
