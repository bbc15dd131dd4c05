"""A merged pipeline behind Ray Serve: `python -m examples.serve`, and `README.md` beside this file.

settings   what a server paints with, and how much it takes on
orders     a request's body as an order, or a refusal that says what is wrong
turns      requests of one model take turns, a step each, first come first served
lanes      who paints a request: a pipeline with a scheduler of its own, on shared weights
painter    lanes, warm-up, cancellation, health: all of a replica that needs no Ray
server     the deployment: HTTP in, PNG out
package    an ahead-of-time package for a server
client     asks, and asks again where the server is busy or gone
load       many clients at once: every picture is compared with the same one painted alone
"""
