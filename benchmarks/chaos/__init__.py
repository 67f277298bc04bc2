"""Five times the capacity, hostile clients and killed workers: what is still answered, and what is left afterwards.

files.py     photos and videos that are right, files that are wrong
clients.py   how each kind of client behaves      storm.py     all of them at once, in a process of its own
killer.py    kills media workers by chance        census.py    memory, descriptors, processes of the server
verdict.py   what each answer was worth           __main__.py  capacity, storm, calm, capacity again; the report
"""
