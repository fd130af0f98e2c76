"""Procedural objects: every modality's sample set shows the same ones. Not a plugin: no manifest, no torch.

``objects`` draws their parameters, ``geometry`` gives each shape as a mesh, ``render`` makes pictures, ``sound`` makes
sounds, and ``store`` writes a sample set once. Point clouds and videos are made from the same parameters.
"""
