-- The lengths of the pieces in which a response was said: who reads it again by event numbers gets the same events.
ALTER TABLE turns ADD COLUMN pieces BLOB;
