"""Web pages on this machine that show the runs below a folder live and pass the user's requests to them.

The dashboard reads only the runs' public files: it needs no Ray and no running run, and does not affect runs. It
listens on 127.0.0.1 only. Anyone who can reach that address may look; changing anything requires the token.
"""
