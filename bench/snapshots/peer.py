"""pyarrow writes and reads sessions beside ours, on one core. A line on the standard input asks for a round:

    load FILE       reads a file of ours into memory, once
    write FILE      writes the table as Parquet with zstd; prints seconds and bytes
    write+ FILE     the same, with what our files have beside: page index, checksums, bloom filters
    read FILE COLUMNS...   reads columns; prints seconds and rows
"""
import os
import sys
import time

import pyarrow as pa
import pyarrow.parquet as pq

pa.set_cpu_count(1)
pa.set_io_thread_count(1)
table = None
for line in sys.stdin:
    what, file, *columns = line.split()
    start = time.perf_counter()
    if what == "load":
        table = pq.ParquetFile(file).read(use_threads=False)
        answer = table.num_rows
    elif what == "write":
        pq.write_table(table, file, compression="zstd")
        answer = os.path.getsize(file)
    elif what == "write+":
        bloom = {"user_id": {"ndv": table.num_rows // 10, "fpp": 0.01}, "views.list.element.item_id": {"ndv": 50_000, "fpp": 0.01}}
        pq.write_table(table, file, compression="zstd", write_page_index=True, write_page_checksum=True, bloom_filter_options=bloom)
        answer = os.path.getsize(file)
    else:
        answer = pq.ParquetFile(file).read(columns=columns or None, use_threads=False).num_rows
    print(time.perf_counter() - start, answer, flush=True)
