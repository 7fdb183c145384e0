"""The commands, one file each: what it does (`strop.train`), its options (`strop train`), and what it prints.

In every command's file the function of that name is what Python users call, and `command` is what the command line
calls; `strop.cli` registers them all. What several commands need:

    console     where they print, and the arguments that several of them take
    run         a run folder, as they take and return it
    arguments   what Python users may give in place of these
    prepare     a recipe's model folder and data, vetted and counted
    load        a model on its device, with a fresh or a trained adapter
    attempt     one attempt at a run, whichever engine computes it
    card        the model card beside an adapter or an export
    harness     a run as a model of lm-evaluation-harness

Here everything is wired together. What loads torch, numpy or Modal's client is imported inside functions, in this
package alone, so that `strop --help` and an error in a recipe are shown at once.

Whatever a person calls comes through here before torch is loaded, so this is where threads are told how to wait.
"""

from strop import threads

threads.settle()
