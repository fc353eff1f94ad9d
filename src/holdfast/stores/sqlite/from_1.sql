-- From version 1 to 2: listeners, and ends that are still to be told.
ALTER TABLE runs ADD COLUMN listener_due INTEGER;
ALTER TABLE runs ADD COLUMN unsaid INTEGER NOT NULL DEFAULT 0;
CREATE INDEX due_listener ON runs (listener_due) WHERE listener_due IS NOT NULL;
CREATE INDEX unsaid ON runs (tenant, session) WHERE unsaid > 0;
