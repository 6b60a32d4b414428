"""`limner`, but the second of several processes runs out of memory in its second step."""

from limner.cli import main
from limner.errors import UserError
from limner.train.loop import Step, Training

step = Training.step


def fail(self: Training) -> Step:
    if self.ranks.index == 1 and self.index == 1:
        raise UserError("GPU 1: out of memory.", "Set fit=true.")
    return step(self)


if __name__ == "__main__":
    Training.step = fail  # type: ignore[method-assign]
    main()
