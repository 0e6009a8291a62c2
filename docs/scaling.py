#!/usr/bin/env python3
"""What so many connections take: the calculation of scaling.md. Change the figures to yours, and run it again."""

import math

# What one connection does.
HEARTBEAT = 25  # s between two pings
STAYS = 1800  # s until it goes, and another one comes
TO_UID = 1 / 60  # messages a second to its uid, each with a publish of its own
GROUP = 100  # members of the one group that it is in; they are anywhere
TO_GROUP = 1 / 100  # messages a second to that group
BYTES = 200  # of a message

# What that costs, µs of a processor: from the tables of scaling.md, but for what names another source.
IDLE = 0.93  # heartbeats, for each connection and second: loadtest/RESULTS.md
COMES, COMES_REDIS = 880, 440  # connecting, bind and join: those of `idle` on a Cluster, which are the dearest there are
HEARD = 8  # a message, to each node that hears it: what each further node adds, and what one uid is dearer than DELIVERY
DELIVERY = 12  # to each client that gets it, in a group of ten; of a large group it is 9
PUBLISH, PUBLISH_NODE = 4.2, 1.1  # a message to Redis, and for each node that hears it: the groups of ten, one Redis
NODE_REDIS = 2500  # a node that does nothing, each second: on a Cluster, taken to be for the master of mg:nodes alone
# Bytes.
MEMORY, SOCKET = 2650, 5000  # of a connection: resident memory of the node; the kernel's, loadtest/README.md
REDIS_MEMORY = 1550  # what Redis knows of it; on a Cluster
PACKET = 66 + 66  # Ethernet, IP and TCP around what is sent, and its acknowledgement

# What there is.
CORES, BUSY = 8, 0.5  # of a node; so much of them may be used on a quiet day
NODE_HOLDS = 250_000  # connections of a node: so many come back at once when it dies
MASTER_BUSY = 0.4  # of the one core that a master is
UNEVEN = 1.2  # the busiest of three masters, over their mean


def take(connections):
    comes = connections / STAYS
    to_uids, to_groups = connections * TO_UID, connections / GROUP * TO_GROUP
    deliveries = to_uids + to_groups * GROUP
    nodes = 2
    while True:
        hear = nodes * (1 - (1 - 1 / nodes) ** GROUP)  # nodes with a member of a group
        heard = to_uids + to_groups * hear
        cores = (connections * IDLE + comes * COMES + heard * HEARD + deliveries * DELIVERY) / 1e6
        needed = max(math.ceil(cores / (CORES * BUSY)), math.ceil(connections / NODE_HOLDS))
        if needed <= nodes:
            break
        nodes = needed
    redis = (comes * COMES_REDIS + (to_uids + to_groups) * PUBLISH + heard * PUBLISH_NODE) / 1e6
    of_nodes = nodes * NODE_REDIS / 1e6
    # The busiest is the one that nodes ask, too; there may be no number of masters that helps.
    left = MASTER_BUSY - of_nodes
    masters = f"{math.ceil(redis * UNEVEN / left):,}" if left > 0 else "no number"
    beats = 2 * connections / HEARTBEAT
    to_clients = deliveries * (BYTES + 4 + PACKET) + beats * (4 + PACKET)
    return {
        "nodes": f"{nodes:,}",
        "cores of nodes in use": f"{cores:,.1f}",
        "memory of a node, GiB": f"{connections / nodes * (MEMORY + SOCKET) / 2**30:.1f}",
        "messages a second": f"{to_uids + to_groups:,.0f}",
        "deliveries a second": f"{deliveries:,.0f}",
        "to and from clients, Gbit/s": f"{to_clients * 8 / 1e9:,.2f}",
        "newcomers a second": f"{comes:,.0f}",
        "cores of Redis in use": f"{redis:,.2f}",
        "of the master of `mg:nodes`, beside": f"{of_nodes:,.2f}",
        "masters": masters,
        "memory of Redis, GiB": f"{connections * REDIS_MEMORY / 2**30:,.1f}",
        "Redis to nodes, Gbit/s": f"{heard * (BYTES + 60) * 8 / 1e9:,.2f}",
        "events a second, if told": f"{comes * 4:,.0f}",
    }


columns = {f"{count:,}": take(count) for count in (100_000, 1_000_000, 10_000_000, 100_000_000)}
print("| connections |" + "".join(f" {count} |" for count in columns))
print("| --- |" + " --- |" * len(columns))
for row in columns["1,000,000"]:
    print(f"| {row} |" + "".join(f" {column[row]} |" for column in columns.values()))
