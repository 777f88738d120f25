#!/usr/bin/env python3
"""The load behind sqlite.trace: a small database in memory, filled, then updated (few rows often) and appended to."""
import random
import sqlite3
import time

random.seed(7)
words = [bytes([97 + (i * j + i // 7) % 26 for j in range(4, 15)]).decode() for i in range(400)]
db = sqlite3.connect(":memory:")
cursor = db.cursor()
cursor.execute("create table t(id integer primary key, name text, balance integer, note text)")
cursor.execute("create index n on t(name)")
insert = "insert into t(name, balance, note) values(?, ?, ?)"
row = lambda: (random.choice(words), random.randrange(1000), random.choice(words) * 3)
cursor.executemany(insert, (row() for _ in range(60000)))
rows, end = 60000, time.time() + 5
while time.time() < end:
    for _ in range(200):
        one = int(random.paretovariate(0.5)) % rows + 1
        cursor.execute("update t set balance = balance + ? where id = ?", (random.randrange(100), one))
    cursor.executemany(insert, [row() for _ in range(20)])
    rows += 20
    db.commit()
    time.sleep(0.005)
