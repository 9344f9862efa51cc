"""Files of a run: the journal and the recording."""
