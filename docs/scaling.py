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

# What that costs a node and Redis, µs of a processor; measured, see the tables of scaling.md.
IDLE = 0.93  # heartbeats, for each connection and second
COMES, COMES_REDIS = 1000, 250  # handshake, bind, join and leaving; few at a time, on a Cluster
HEARD = 8  # a message, to each node that hears it
DELIVERY = 12  # to each client that gets it
PUBLISH, PUBLISH_NODE = 4.2, 1.1  # a message to Redis, and to Redis for each node that hears it
NODE_REDIS = 2500  # a node that does nothing, to Redis, each second; nearly all of it to one master
# Bytes.
MEMORY, SOCKET = 2650, 5000  # of a connection: resident memory of the node, and the kernel's
REDIS_MEMORY = 1550  # what Redis knows of it; on a Cluster
PACKET = 66 + 66  # Ethernet, IP and TCP around what is sent, and its acknowledgement

# What there is.
CORES, BUSY = 8, 0.5  # of a node; so much of them may be used on a quiet day
NODE_HOLDS = 250_000  # connections of a node: so many come back at once when it dies
MASTER_BUSY = 0.4  # a master is one core; the other masters take over when one is gone


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
    one_master = nodes * NODE_REDIS / 1e6
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
        "masters": f"{max(1, math.ceil(redis / MASTER_BUSY)):,}",
        "cores of the master of `mg:nodes`": f"{one_master:.2f}",
        "memory of Redis, GiB": f"{connections * REDIS_MEMORY / 2**30:,.1f}",
        "Redis to nodes, Gbit/s": f"{heard * (BYTES + 60) * 8 / 1e9:,.2f}",
        "events a second, if told": f"{comes * 4:,.0f}",
    }


columns = {f"{count:,}": take(count) for count in (100_000, 1_000_000, 10_000_000, 100_000_000)}
print("| connections |" + "".join(f" {count} |" for count in columns))
print("| --- |" + " --- |" * len(columns))
for row in columns["1,000,000"]:
    print(f"| {row} |" + "".join(f" {column[row]} |" for column in columns.values()))
