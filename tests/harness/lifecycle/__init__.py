"""A model of the life of requests between one source and one sink, in which every order of events can be played.

The pure pieces are the real ones: schedulers, block pools, tickets, the merge of tokens and the policy of recovery.
What runs at the same time in a deployment (a read, a write, a call) is split into events here; what travels arrives in
any order that streams allow, or never. Blocks have content, so a token that is computed from foreign KV is wrong.
"""
