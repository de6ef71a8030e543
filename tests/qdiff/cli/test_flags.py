"""The command line against the published one: names, values and defaults are copied from its documentation."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qdiff.cli.ddim_flags import ddim_parser
from qdiff.cli.parser import Parser, choice, parse, run
from qdiff.errors import UserError

CIFAR = "--config configs/cifar10.yml --use_pretrained --timesteps 100 --eta 0 --skip_type quad --ptq"
WEIGHTS_ONLY = CIFAR + " --weight_bit {bit} --quant_mode qdiff --split --resume -l out --cali_ckpt w.pth"
WITH_ACTIVATIONS = (
    CIFAR + " --weight_bit {bit} --quant_mode qdiff --quant_act --act_bit 8 --a_sym --split --resume "
    "-l out --cali_ckpt w.pth"
)
CALIBRATE = (
    CIFAR + " --weight_bit {bit} --quant_mode qdiff --cali_st 20 --cali_batch_size 32 --cali_n 256 "
    "--quant_act --act_bit 8 --a_sym --split --cali_data_path data.pt -l out"
)

# Each flag of the original with its default; one without a value is off or has none.
PUBLISHED = """
--ptq --quant_act --weight_bit 8 --act_bit 8 --quant_mode qdiff --cali_st 1 --cali_batch_size 32 --cali_n 1024
--cali_iters 20000 --cali_iters_a 5000 --cali_lr 4e-4 --cali_p 2.4 --cali_ckpt --cali_data_path --resume --resume_w
--cond --running_stat --sm_abit 8 --verbose
--seed 1234 --use_pretrained --sample_type generalized --skip_type uniform --timesteps 1000 --eta 0.0 --sequence
--max_images 50000 --a_sym --split
"""
ADDED = (
    "--ckpt --device auto --dry_run --batch_size --cali_lr_w --cali_memory --cali_range_n 256 "
    "--dpm_order 3 --dpm_method singlestep --a_min_max --rs_sm_only --low_memory "
    "--act_groups 1 --keep8 --cali_spectrum_n 1 --cali_devices 1 --correct_bias "
    "--correct --correct_fit ptqd --correct_n 64 --correct_parts --correct_interpolate --backend simulated "
    "--w_sym --preset"
)
WITHOUT_VALUE = {
    "cali_ckpt",
    "cali_data_path",
    "ckpt",
    "batch_size",
    "cali_lr_w",
    "cali_memory",
    "correct",
    "correct_parts",
    "preset",
}

BASE = "--config c.yml "
PTQ = BASE + "--ptq "
ACT = PTQ + "--quant_act "


def read(line: str):
    return parse(ddim_parser(), shlex.split(line))


def refusal(line: str) -> str:
    with pytest.raises(UserError) as caught:
        read(line)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def documented_defaults(table: str) -> dict:
    defaults = {}
    for flag, text in re.findall(r"--(\w+)(?: ([^-\s]\S*))?", table):
        defaults[flag] = text or (None if flag in WITHOUT_VALUE else False)
    return defaults


@pytest.mark.parametrize("bit", [4, 8])
@pytest.mark.parametrize(
    ("line", "special"),
    [
        (WEIGHTS_ONLY, {"resume": True, "cali_ckpt": Path("w.pth"), "quant_act": False, "a_sym": False}),
        (WITH_ACTIVATIONS, {"resume": True, "cali_ckpt": Path("w.pth"), "quant_act": True, "a_sym": True}),
        (
            CALIBRATE,
            {"resume": False, "quant_act": True, "a_sym": True, "cali_st": 20, "cali_batch_size": 32, "cali_n": 256}
            | {"cali_data_path": Path("data.pt"), "cali_ckpt": None},
        ),
    ],
)
def test_published_command_lines_mean_what_they_meant(line, special, bit):
    common = {"config": Path("configs/cifar10.yml"), "use_pretrained": True, "timesteps": 100, "eta": 0.0}
    common |= {"skip_type": "quad", "ptq": True, "weight_bit": bit, "act_bit": 8, "split": True, "seed": 1234}
    common |= {"quant_mode": "qdiff", "logdir": Path("out"), "resume_w": False, "dry_run": False}
    args = vars(read(line.format(bit=bit)))
    expected = common | special
    assert {name: args[name] for name in expected} == expected
    assert vars(read(line.format(bit=bit) + " --dry-run"))["dry_run"]


def test_every_flag_has_its_documented_default_and_there_is_no_other():
    args = vars(read("--config c.yml"))
    expected = documented_defaults(PUBLISHED + ADDED) | {"config": "c.yml", "logdir": "runs/ddim", "keep8": ()}
    expected |= {"mixed_precision": (), "bops_budget": None, "snr_ratio": "norm"}
    assert args.keys() == expected.keys()
    for name, value in args.items():
        if isinstance(expected[name], str):
            assert value == type(value)(expected[name]), name
        else:
            assert value is expected[name], name
    assert isinstance(args["seed"], int)
    assert isinstance(args["cali_p"], float)


@pytest.mark.parametrize(
    "line",
    [
        BASE + "--sample_type dpm_solver --eta 0 --dpm_order 2 --dpm_method multistep",
        BASE + "--sample_type ddpm_noisy --sequence --verbose --cond --ckpt w.safetensors --dry_run",
        BASE + "--eta 1 --seed 0 --batch_size 1 --max_images 1 --device cuda:1",
        BASE + "--device mps --logdir=out",
        ACT + "--resume_w --cali_ckpt w.pth --act_bit 2 --sm_abit 16 --running_stat --cali_iters_a 1 --cali_p 1",
        PTQ + "--quant_mode linear --weight_bit 2 --cali_memory 0.5 --cali_lr_w 1 --cali_iters 1",
        PTQ + "--cali_st 2000 --cali_data_path data.pt",
        PTQ + "--cali_st 1000",
        ACT + "--quant_mode gptq --act_groups 4 --cali_st 4 --keep8 ends,time --cali_spectrum_n 0",
        PTQ + "--quant_mode gptq --keep8 time",
        ACT + "--mixed_precision 4 --snr_ratio power --act_groups 2 --keep8 ends",
        ACT + "--act_bit 6 --mixed_precision 3,5 --bops_budget 1",
        ACT + "--resume_w --cali_ckpt w --mixed_precision 4",
        PTQ + "--quant_mode squant --split",
    ],
)
def test_accepted(line):
    read(line)


def lacking(flag: str, what: str) -> str:
    return f"{flag} needs {what}: add what is missing, or leave {flag} out"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (PTQ + "--weigth_bit 4", "unknown flag --weigth_bit: did you mean --weight_bit?"),
        (PTQ + "--weigth_bit=4", "unknown flag --weigth_bit: did you mean --weight_bit?"),
        (BASE + "--timestep 4", "unknown flag --timestep: did you mean --timesteps?"),
        (BASE + "--PTQ", "unknown flag --PTQ: did you mean --ptq?"),
        ("--confg c.yml", "unknown flag --confg: did you mean --config?"),
        (BASE + "--zzzzzz", "unknown flag --zzzzzz: see --help"),
        (BASE + "-x", "unknown flag -x: see --help"),
        (BASE + "--ptq 4", "unexpected word '4': leave it out, or put it after the flag that it belongs to"),
        ("", "--config is missing: add --config FILE"),
        (BASE + "--skip_type quda", "--skip_type: 'quda' is unknown: did you mean quad?"),
        (BASE + "--skip_type x", "--skip_type: 'x' is unknown: use uniform or quad"),
        (BASE + "--sample_type generalised", "--sample_type: 'generalised' is unknown: did you mean generalized?"),
        (PTQ + "--quant_mode Linear", "--quant_mode: 'Linear' is unknown: did you mean linear?"),
        (PTQ + "--quant_mode squnat", "--quant_mode: 'squnat' is unknown: did you mean squant?"),
        (PTQ + "--quant_mode gtpq", "--quant_mode: 'gtpq' is unknown: did you mean gptq?"),
        (PTQ + "--keep8 end", "--keep8: 'end' is unknown: use ends or time, or both with a comma"),
        (PTQ + "--keep8 ends,all", "--keep8: 'all' is unknown: use ends or time, or both with a comma"),
        (PTQ + "--keep8", "--keep8: expected one argument"),
        (ACT + "--mixed_precision 4,", "--mixed_precision: '' is not a whole number in 2..7"),
        (ACT + "--mixed_precision 4 --snr_ratio nrm", "--snr_ratio: 'nrm' is unknown: did you mean norm?"),
        (
            ACT + "--act_bit 6 --mixed_precision 4,6",
            "--mixed_precision 6 is not less than --act_bit 6, the most bits of a step: lower the one or raise the "
            "other",
        ),
        (ACT + "--bops_budget 0.9", lacking("--bops_budget", "--mixed_precision")),
        (PTQ + "--mixed_precision 4", lacking("--mixed_precision", "--quant_act")),
        (
            ACT + "--mixed_precision 4 --bops_budget 0.9 --snr_ratio norm",
            "--snr_ratio and --bops_budget exclude each other: leave one of them out",
        ),
        (
            ACT + "--resume --cali_ckpt w --mixed_precision 4",
            "--mixed_precision and --resume exclude each other: leave one of them out",
        ),
        (BASE + "-l", "-l/--logdir: expected one argument"),
        (BASE + "--device gpu", "--device: 'gpu' is not a device: use auto, cpu, mps, cuda or cuda:N"),
        (BASE + "--device cuda:x", "--device: 'cuda:x' is not a device: use auto, cpu, mps, cuda or cuda:N"),
    ],
)
def test_misspelt_or_missing(line, message):
    assert refusal(line) == message


@pytest.mark.parametrize(
    ("line", "flag", "values", "span"),
    [
        (PTQ, "--weight_bit", "1 9 4.0 four", "a whole number in 2..8"),
        (ACT, "--act_bit", "1 9", "a whole number in 2..8"),
        (ACT, "--sm_abit", "1 17", "a whole number in 2..16"),
        (BASE, "--seed", "-1 4294967296", "a whole number in 0..4294967295"),
        (BASE, "--dpm_order", "0 4", "a whole number in 1..3"),
        (BASE, "--eta", "-0.1 1.1 nan inf x", "a number in 0..1"),
        (BASE, "--timesteps", "0 -5 inf 1e3", "a whole number in 1.."),
        (BASE, "--max_images", "0", "a whole number in 1.."),
        (BASE, "--batch_size", "0", "a whole number in 1.."),
        (PTQ, "--cali_st", "0", "a whole number in 1.."),
        (PTQ, "--cali_n", "0", "a whole number in 1.."),
        (PTQ, "--cali_batch_size", "0", "a whole number in 1.."),
        (PTQ, "--cali_iters", "0", "a whole number in 1.."),
        (ACT, "--cali_iters_a", "0", "a whole number in 1.."),
        (PTQ, "--cali_lr_w", "0 1.5", "a number in 1e-08..1"),
        (ACT, "--cali_lr", "0 1.5", "a number in 1e-08..1"),
        (ACT, "--cali_p", "0.9 inf", "a number in 1..10"),
        (ACT, "--act_groups", "0 -1 2.5", "a whole number in 1.."),
        (ACT, "--mixed_precision", "1 8 4.0 four", "a whole number in 2..7"),
        (ACT + "--mixed_precision 4", "--bops_budget", "0 1.01 nan half", "a number in 0.01..1"),
        (PTQ, "--cali_spectrum_n", "-1 x", "a whole number in 0.."),
        (PTQ, "--cali_memory", "0 -1 inf", "a number in 0.01..65536"),
    ],
)
def test_values_out_of_range(line, flag, values, span):
    for value in values.split():
        assert refusal(f"{line} {flag} {value}") == f"{flag}: {value!r} is not {span}"


@given(st.integers())
def test_the_stated_range_is_the_accepted_range(bit):
    line = f"{PTQ} --weight_bit {bit}"
    if 2 <= bit <= 8:
        assert read(line).weight_bit == bit
    else:
        assert "2..8" in refusal(line)


@pytest.mark.parametrize(
    "words",
    [
        *("--quant_act", "--weight_bit 8", "--quant_mode qdiff", "--split"),
        *("--cali_st 1", "--cali_n 9", "--cali_batch_size 9", "--cali_data_path d.pt"),
        *(
            "--cali_iters 9",
            "--cali_lr_w 1e-3",
            "--cali_memory 1",
            "--cali_spectrum_n 2",
            "--cali_devices 2",
            "--keep8 ends",
        ),
    ],
)
def test_quantization_flags_need_ptq_even_with_their_default_value(words):
    assert refusal(BASE + words) == lacking(words.split()[0], "--ptq")
    read(PTQ + words)


@pytest.mark.parametrize(
    "words",
    [
        "--act_bit 8",
        "--act_groups 1",
        "--sm_abit 8",
        "--a_sym",
        "--preset tensorrt",
        "--running_stat",
        "--cali_iters_a 9",
        "--cali_lr 4e-4",
        "--cali_p 2",
    ],
)
def test_activation_flags_need_quantized_activations(words):
    flag = words.split()[0]
    assert refusal(BASE + words) == lacking(flag, "--ptq and --quant_act")
    assert refusal(PTQ + words) == lacking(flag, "--quant_act")
    read(ACT + words)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (PTQ + "--resume", lacking("--resume", "--cali_ckpt")),
        (BASE + "--resume --cali_ckpt w", lacking("--resume", "--ptq")),
        (ACT + "--resume_w", lacking("--resume_w", "--cali_ckpt")),
        (PTQ + "--resume_w --cali_ckpt w", lacking("--resume_w", "--quant_act")),
        (PTQ + "--cali_ckpt w", lacking("--cali_ckpt", "--resume or --resume_w")),
        (
            ACT + "--act_groups 2 --cali_st 2 --resume --cali_ckpt w",
            "--act_groups and --resume exclude each other: leave one of them out",
        ),
        (
            PTQ + "--keep8 ends --resume --cali_ckpt w",
            "--keep8 and --resume exclude each other: leave one of them out",
        ),
        (
            ACT + "--keep8 ends --resume_w --cali_ckpt w",
            "--keep8 and --resume_w exclude each other: leave one of them out",
        ),
        (
            ACT + "--resume --resume_w --cali_ckpt w",
            "--resume_w and --resume exclude each other: leave one of them out",
        ),
        (
            BASE + "--use_pretrained --ckpt w",
            "--ckpt and --use_pretrained exclude each other: leave one of them out",
        ),
        (
            BASE + "--dpm_order 3",
            "--dpm_order needs --sample_type dpm_solver: add that, or leave --dpm_order out",
        ),
        (
            BASE + "--sample_type ddpm_noisy --dpm_method multistep",
            "--dpm_method needs --sample_type dpm_solver: add that, or leave --dpm_method out",
        ),
        (
            BASE + "--sample_type dpm_solver --eta 0.5",
            "--eta needs --sample_type generalized: add that, or leave --eta out",
        ),
        (
            PTQ + "--w_sym --resume --cali_ckpt w",
            "--w_sym and --resume exclude each other: leave one of them out",
        ),
        (
            ACT + "--preset cuda",
            "--preset: 'cuda' is unknown: use tensorrt",
        ),
        (PTQ + "--timesteps 10 --cali_st 20", "--cali_st 20 exceeds --timesteps 10: lower it"),
    ],
)
def test_flags_that_do_not_go_together(line, message):
    assert refusal(line) == message


def test_help_names_every_flag_and_its_examples_parse(capsys):
    parser = ddim_parser()
    with pytest.raises(SystemExit) as done:
        parse(parser, ["--help"])
    assert done.value.code == 0
    text = capsys.readouterr().out
    for name in documented_defaults(PUBLISHED + ADDED):
        assert re.search(rf"--{name}\b", text), name
    examples = re.findall(r"python scripts/sample_diffusion_ddim.py (--config configs.*)", text.replace("\\\n", " "))
    assert [read(line).ptq for line in examples] == [False, True, True]


def test_a_group_asks_for_its_flags():
    parser = Parser(prog="x")
    parser.group("g", needs=("--on",))("-w", "--word", required=True, default="b", help="a word", **choice("a", "b"))
    parser.group("h")("--on", action="store_true", help="on")
    with pytest.raises(UserError, match=r"^--word is missing: add --word a\|b$"):
        parse(parser, ["--on"])
    assert vars(parse(parser, ["-wa", "--on"])) == {"word": "a", "on": True}
    assert "a word (default b)" in parser.format_help()


def program(body: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", body], capture_output=True, text=True, timeout=30, check=False)


def test_help_loads_no_torch():
    done = program(
        "import sys\n"
        "from qdiff.cli.ddim_flags import ddim_parser\n"
        "from qdiff.cli.parser import parse, run\n"
        "try:\n    run(lambda: parse(ddim_parser(), ['--help']))\n"
        "finally:\n    print(sorted({'torch', 'numpy', 'omegaconf'} & set(sys.modules)), file=sys.stderr)\n"
    )
    assert (done.returncode, done.stderr) == (0, "[]\n")
    assert "--weight_bit 2..8" in done.stdout


def test_a_wrong_flag_ends_the_program_with_one_line_and_status_2():
    done = program(
        "from qdiff.cli.ddim_flags import ddim_parser\n"
        "from qdiff.cli.parser import parse, run\n"
        "run(lambda: parse(ddim_parser(), ['--config', 'c.yml', '--weigth_bit', '4']))\n"
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: unknown flag --weigth_bit: did you mean --weight_bit?\n"


def test_an_interrupted_program_says_how_to_go_on():
    body = (
        "import os, signal\n"
        "from qdiff.cli.parser import run\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell's background jobs ignore it
        "run(lambda: os.kill(os.getpid(), signal.SIGINT))\n"
    )
    done = program(body)
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr == "interrupted: run the same command again to resume\n"


def test_run_hides_no_other_error():
    with pytest.raises(ZeroDivisionError):
        run(lambda: 1 / 0)
    assert run(lambda: None) is None
