"""The core: every decision of the fabric, as events in and effects out.  Pure: no I/O, no clock."""
