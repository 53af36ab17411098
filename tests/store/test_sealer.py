import os
import subprocess
import sys

from t3vis.store.commits import committed_passes
from t3vis.store.sealer import Sealer

from .recordings import two_epochs


def test_the_sealer_stays_in_our_session_in_a_process_group_of_its_own(tmp_path, monkeypatch):
    """In a session of its own the kernel would weigh it as one group against all of ours, whatever its niceness."""
    two_epochs(tmp_path)
    begun = []

    class Watched(subprocess.Popen):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            begun.append((self.pid, os.getsid(self.pid), os.getpgid(self.pid)))

    monkeypatch.setattr(subprocess, "Popen", Watched)
    sealer = Sealer(tmp_path)
    sealer.start(["train:0"])
    sealer.wait()
    [(pid, session, group)] = begun
    assert session == os.getsid(0)
    assert group == pid != os.getpgid(0)
    assert committed_passes(tmp_path / "train") == [0]


def test_what_interrupts_the_trainer_leaves_the_sealer_alone(tmp_path):
    """Ctrl-C goes to every process of the trainer's group."""
    two_epochs(tmp_path)
    code = f"""if True:
        import os, signal
        from pathlib import Path
        from t3vis.store.sealer import Sealer
        sealer = Sealer(Path({str(tmp_path)!r}))
        sealer.start(["train:0"])
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        os.killpg(0, signal.SIGINT)
        sealer.wait()
    """
    subprocess.run([sys.executable, "-c", code], check=True, process_group=0)
    assert committed_passes(tmp_path / "train") == [0]
