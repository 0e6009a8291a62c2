# shellcheck shell=bash disable=SC2034,SC2154
# Sourced by examples/run: what the nodes are told for the chat room, and what there is to open.

# What a node says to the room when a client is gone, for whatever reason: the application does nothing for it.
export MOONGATE_LEAVE_MESSAGE='{"type":"close","uname":"{session.uname}","tab":"{session.tab}"}'

pages="  Open the room at node 1   $app/
  and at node 2             ${app/127.0.0.1/localhost}/?node=2
                            (another name of this machine, so another cookie: two users in one browser)"
modules=redis
