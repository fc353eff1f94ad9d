"""The life of runs: sessions admit, a worker claims, an executor drives, an appender appends, the reaper ends."""
