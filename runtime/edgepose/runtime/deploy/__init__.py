"""Bundles on the boards that stream them: proven there before they go live, and taken back if they fail.

What happens on a board needs no workstation (`here`): a connection that breaks changes nothing of it. A fleet
is the same on many boards, in waves (`fleet`).
"""
