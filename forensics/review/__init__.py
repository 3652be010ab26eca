"""The parts of an incident review. A file holds sections that belong together; a section yields blocks of markdown.

A section is a pure function of an Explanation, begins with its heading, and never knows another file of this room.
Whatever comes from a log goes through `text.markdown`, `text.code` or `text.mermaid` before it is written.
"""
