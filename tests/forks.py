"""Programs in processes that are forked from one that has imported what they import.

Importing TensorFlow, KServe or JAX takes longer than most of what tests do in a process of its own.
"""

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path


class Forks:
    """A process that imports once, and is forked for each program.

    Args:
        imports: What it does before any program: Python code.
        python: Its interpreter.
        **environment: Variables that the code needs.
    """

    def __init__(self, imports, python=sys.executable, **environment):
        self._environment, (self._socket, other) = environment, socket.socketpair()
        with other:
            self._process = subprocess.Popen(
                [python, __file__, str(other.fileno()), imports],
                env={**os.environ, **environment},
                pass_fds=[other.fileno()],
            )

    def start(self, program, *arguments, stderr, cwd=None, **environment):
        """Starts a program, Python code, as `subprocess.Popen` would; `stderr` is a file."""
        (told, tell), (stdout, write) = os.pipe(), os.pipe()
        # That of now, and not of the test by which the imports were begun.
        environment = {**os.environ, **self._environment, **environment}
        request = json.dumps([program, arguments, str(cwd or Path.cwd()), environment])
        descriptors = [tell, write, stderr.fileno()]
        socket.send_fds(self._socket, [request.encode()], descriptors)
        os.close(tell)
        os.close(write)
        return Forked(told, stdout)

    def run(self, program, *arguments, **settings):
        """Runs a program to its end, as `subprocess.run` would, and returns what that would."""
        with tempfile.TemporaryFile("w+") as stderr:
            with self.start(program, *arguments, stderr=stderr, **settings) as started:
                stdout = started.stdout.read().decode()
            stderr.seek(0)
            return subprocess.CompletedProcess(arguments, started.returncode, stdout, stderr.read())

    def end(self):
        """Ends the process, and none that was forked from it."""
        self._socket.close()
        self._process.wait()


class Forked:
    """A program that has started, with the part of `subprocess.Popen` that tests use."""

    def __init__(self, told, stdout):
        self._told, self.stdout, self.returncode = os.fdopen(told), os.fdopen(stdout, "rb"), None
        number = self._told.readline()
        assert number, "The process that imports has failed; its standard error says why."
        self.pid = int(number)

    def __enter__(self):
        return self

    def __exit__(self, *raised):
        self.stdout.close()
        self.wait()

    def wait(self, timeout=None):
        if self.returncode is None:
            if not select.select([self._told], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired("the forked program", timeout)
            with self._told:
                self.returncode = int(self._told.readline())
        return self.returncode

    def terminate(self):
        self._send(signal.SIGTERM)

    def kill(self):
        self._send(signal.SIGKILL)

    def _send(self, number):
        if self.returncode is None:
            with contextlib.suppress(ProcessLookupError):  # It has ended by itself.
                os.kill(self.pid, number)


def requested():
    """The program that is asked for, in a process that is forked for it; beside it one waits."""
    with socket.socket(fileno=int(sys.argv[1])) as asked:
        while True:
            request, descriptors, *_ = socket.recv_fds(asked, 2**20, 3)
            with contextlib.suppress(ChildProcessError):  # There is none.
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
            if not request:
                os._exit(0)
            if os.fork() == 0:
                break
            for descriptor in descriptors:
                os.close(descriptor)
    tell, stdout, stderr = descriptors
    if program := os.fork():
        os.write(tell, b"%d\n" % program)
        code = os.waitstatus_to_exitcode(os.waitpid(program, 0)[1])
        os.write(tell, b"%d\n" % code)
        os._exit(0)
    os.dup2(stdout, 1)
    os.dup2(stderr, 2)
    for descriptor in descriptors:
        os.close(descriptor)
    return json.loads(request)


if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[1])
    exec(sys.argv[2], {"__name__": "imports"})
    code, arguments, folder, environment = requested()
    sys.argv = ["-c", *arguments]
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    exec(compile(code, "<program>", "exec"), {"__name__": "__main__"})
