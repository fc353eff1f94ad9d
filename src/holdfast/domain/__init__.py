"""What a run is: its events, its lifecycle, its errors. Pure: no asyncio, no I/O, no clock of its own."""
