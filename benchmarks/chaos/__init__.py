"""Five times the capacity, hostile clients and killed workers: what is still answered, and what is left afterwards.

files.py     photos and videos that are right, files that are wrong
clients.py   how each kind of client behaves      scene.py     who sends which files, and the right answers
storm.py     all at once, in a process of its own killer.py    kills media workers by chance
verdict.py   what each answer was worth           census.py    memory, descriptors, processes of the server
report.py    the tables                           __main__.py  capacity, storm, calm, capacity again
"""
