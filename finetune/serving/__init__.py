"""A web server for trained models: the HTTP interface, and a page on top of it.

The limits on what visitors send are constants of the modules that hold them. No file is written.
"""
