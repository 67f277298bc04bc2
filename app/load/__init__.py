"""A load generator that is light enough to share its cores with the server that it measures.

    target.py       where to: a checked address          request.py    what to send: whole HTTP requests, built once
    connection.py   one HTTP/1.1 connection              arrivals.py   when to send: Poisson arrivals and their clock
    generator.py    closed and open loop                 isolated.py   the same in a process of its own
    summary.py      percentiles, rates, overhead         report.py     a line of the table, the curves of the picture
    plot.py         SVG and terminal charts              table.py      text tables
    progress.py     a progress bar                       server.py     a server process to measure

It knows nothing of the server's inside: `benchmarks/` points it at other servers too.
"""
