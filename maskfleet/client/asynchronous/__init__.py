"""The client for asyncio.  All but ``transport`` is made from the modules beside this folder: ``make async-client``."""
