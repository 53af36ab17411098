"""Trainings as processes that are killed and resumed again and again, while a reader looks on.

A run is recorded by two processes. Three things are killed with SIGKILL, at random moments:

- the *trainer*: both processes, which call ``log`` and ``flush``, at once;
- the *writer*: one of them while its writer thread is inside the writing of a segment, the other one a little later,
  as a launcher does;
- the *sealer*: the subprocess that the first one has started, while it is at work on the run.

Every value tells by itself whether it is right: it is computed from the pass, the example and its *origin*, which is
the attempt and which of the example's visits in that pass, and its first number gives the origin away. Which origin
a row must have follows from the checkpoints that each attempt started from.

``plan`` says what is recorded, ``training`` and ``onlooker`` are the processes, ``folder`` is what they tell each
other, ``processes`` starts and kills them, ``killing`` does so until there were enough kills, ``finished`` looks at
what is left in the end.
"""
