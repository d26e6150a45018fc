"""What users bring is quoted in messages, which stay short and end with what to do."""

from comfyui_longcat.training.errors import LONGEST_MESSAGE, LONGEST_WORD, ConfigError, DataError
from comfyui_longcat.training.rehearsal.report import RehearsalError, RehearsalReport


def test_a_long_value_is_cut_and_the_remedy_stays():
    for error in (DataError, ConfigError):
        message = str(error(f"lora_rank is '{'9' * 100_000}'; it must be a number. Correct it."))
        assert message.startswith("lora_rank is '999") and message.endswith("9'; it must be a number. Correct it.")
        assert len(message) < LONGEST_WORD + 100
        message = str(error(f"values is {list(range(100_000))}; it must be a number. Correct it."))
        assert len(message) < LONGEST_MESSAGE and message.endswith("; it must be a number. Correct it.")


def test_each_fault_is_cut_by_itself():
    error = ConfigError(f"a is {'x' * 1_000}.", f"b is {'y' * 1_000}. Remove it.")
    assert all(len(fault) < LONGEST_WORD + 30 for fault in error.faults)
    assert str(error).startswith("2 faults:\n- a is xxx") and error.faults[1].endswith("y. Remove it.")


def test_what_fits_stays_as_it_is():
    message = " ".join(["/" + "a" * (LONGEST_WORD - 1)] * 5)
    assert str(DataError(message)) == message
    faults = tuple(f"fault number {number}" for number in range(1_000))
    report = RehearsalReport(title="A long report", faults=faults)
    assert str(RehearsalError(report)) == report.text()
