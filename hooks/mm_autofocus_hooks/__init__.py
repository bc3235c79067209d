"""The policies and observers that ship with mm-autofocus, each a pluggy plugin that a user's own may replace.

``schedule`` decides when to focus, ``failure`` what to do when it fails, ``focus_map`` predicts the focal plane,
``recorder`` keeps the results, ``progress`` shows how far the acquisition is.
"""
