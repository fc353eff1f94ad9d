-- From version 2 to 3: admission counts the runs of one tenant, too.
DROP INDEX live;
CREATE INDEX live ON runs (state, tenant) WHERE state IN ('queued', 'running', 'waiting');
