"""What the GPU benchmark measures in which order, and what its table says: with outcomes that are made up."""

from typing import Any

from benchmarks.gpu_course import FULL, Course, jobs
from benchmarks.gpu_jobs import Job
from benchmarks.gpu_summary import failures, in_a_line, summarise

RESULTS: dict[str, dict[str, Any]] = {
    "matrix": {"best": 500.0},
    "build": {"built": True},
    "agreement": {"top1": 0.9995},
    "http": {"requests_per_s": 800.0},
}


def outcomes(course: Course = FULL, failing: tuple[str, ...] = (), error: str = "", **rates: float) -> dict[str, Any]:
    """Of all jobs; those whose key has one of the words of `failing` fail. `rates` go by the contender."""
    done: dict[str, Any] = {}
    for job in jobs(course, done):
        if any(word in job.key for word in failing):
            done[job.key] = {"job": job.document(), "error": error or f"no {job.contender}"}
            continue
        done[job.key] = {"job": job.document(), "result": RESULTS.get(job.what) or rates_of(job, rates)}
    return done


def rates_of(job: Job, rates: dict[str, float]) -> dict[str, Any]:
    best = rates.get(job.contender.split()[0].replace("-", "_"), 100.0)
    found = {"rates": {str(batch): best / (1 + at) for at, batch in enumerate(job.batches)}}
    return found if job.contender.startswith(("torch", "reference")) else found | {"one_row_ms": 100 / best}


def test_what_matters_most_comes_first() -> None:
    keys = [key for key in outcomes() if not key.startswith("build")]
    assert keys[:14] == [
        "matrix torch fp16",
        "rates hiera_base_224 tensorrt fp16",
        "rates hiera_base_224 onnxruntime fp16",
        "rates hiera_base_224 reference fp16",
        "agreement hiera_base_224 tensorrt fp16",
        "agreement hiera_base_224 onnxruntime fp16",
        "rates hiera_large_224 tensorrt fp16",
        "rates hiera_large_224 onnxruntime fp16",
        "http hiera_large_224 tensorrt fp16 1 instance",
        "http hiera_large_224 tensorrt fp16 2 instances",
        "rates hiera_base_224 reference-compiled fp16 batch 64",
        "rates hiera_base_224 reference-compiled fp16 batch 256",
        "rates hiera_base_224 reference-compiled fp16 batch 1",
        "rates hiera_tiny_224 tensorrt fp16",
    ]
    precisions = ["bf16" if "bf16" in key else "fp16" for key in keys]
    assert precisions == sorted(precisions, reverse=True)


def test_each_package_and_plan_is_a_job_before_what_needs_it() -> None:
    keys = list(outcomes())
    for variant in (FULL.compared, *FULL.others):
        for precision in FULL.precisions:
            package, plan, rates = (
                keys.index(f"{key} {precision}")
                for key in (f"build {variant} package", f"build {variant} tensorrt", f"rates {variant} tensorrt")
            )
            assert package < plan < rates


def test_what_could_not_be_built_is_not_measured() -> None:
    keys = outcomes(failing=("build hiera_large_224 package",))
    assert not any("hiera_large_224" in key and not key.startswith("build") for key in keys)
    keys = outcomes(failing=("build hiera_large_224 tensorrt fp16",))
    assert "rates hiera_large_224 tensorrt fp16" not in keys
    assert "http hiera_large_224 onnxruntime fp16 2 instances" in keys


def test_this_projects_model_stands_in_where_the_reference_fails() -> None:
    assert not any(" torch" in key for key in outcomes() if key.startswith("rates"))

    missing = outcomes(failing=("reference",))
    assert "rates hiera_base_224 torch fp16" in missing
    assert "rates hiera_base_224 torch-compiled fp16 batch 256" in missing
    assert not any("reference-compiled" in key for key in missing)

    one_size = [key for key in outcomes(failing=("reference-compiled fp16 batch 256",)) if "torch-compiled" in key]
    assert one_size == ["rates hiera_base_224 torch-compiled fp16 batch 256"]


def test_compiling_that_takes_too_long_is_not_tried_with_another_model() -> None:
    keys = outcomes(failing=("compiled",), error="stopped after 270 s")
    assert [key for key in keys if "compiled" in key] == [
        f"rates hiera_base_224 reference-compiled fp16 batch {batch}" for batch in FULL.compiled
    ]
    assert any("torch-compiled" in key for key in outcomes(failing=("compiled",)))


def test_what_was_measured_in_part_is_said_with_what_failed() -> None:
    done = outcomes(failing=("matrix torch bf16",))
    done["rates hiera_base_224 tensorrt fp16"]["result"]["stopped"] = "batch 256: EngineOutOfMemory: no room"
    assert failures(done) == [
        "rates hiera_base_224 tensorrt fp16: batch 256: EngineOutOfMemory: no room",
        "matrix torch bf16: no torch bf16",
    ]
    assert in_a_line(done["rates hiera_base_224 tensorrt fp16"]) == (
        "100.0 rows/s, until batch 256: EngineOutOfMemory: no room"
    )


def test_the_fastest_engine_is_asked_over_http() -> None:
    keys = outcomes(tensorrt=100, onnxruntime=200)
    assert [key for key in keys if key.startswith("http hiera_tiny_224")] == [
        "http hiera_tiny_224 onnxruntime fp16 1 instance",
        "http hiera_tiny_224 onnxruntime fp16 2 instances",
    ]


def test_the_table_compares_the_best_of_each() -> None:
    done = outcomes(tensorrt=3000, onnxruntime=2000, reference=1000, reference_compiled=1500)
    done["http hiera_large_224 tensorrt fp16 2 instances"]["result"] = {"requests_per_s": 2400.0}
    seen = {measure: figure for measure, _, figure in summarise("hiera_base_224", done)}
    assert seen["base_224 against the reference's eager fp16"] == "3.00 (reference fp16)"
    assert seen["base_224 against torch.compile"] == "2.00 (reference-compiled fp16)"
    assert seen["base_224, rows/s"] == "3000 (tensorrt fp16)"
    assert seen["base_224, one row, ms"] == "0.03"
    shares = seen["share of the measured matrix rate: large_224, huge_224, base_16x224, large_16x224"]
    assert "hiera_large_224 48." in shares  # 3,000 a second at 40.3 GMACs, of 500 TFLOP/s
    http = seen["HTTP against the bare engine: large_224"].split(", hiera_tiny")[0]
    assert http == "hiera_large_224 0.80 (tensorrt fp16, 2 instances)"
    agreements = seen["top-1 agreement with fp32: random weights, trained weights"]
    assert agreements.startswith("hiera_base_224 tensorrt fp16 99.95%, ")


def test_the_table_has_gaps_where_nothing_was_seen() -> None:
    assert {figure for _, _, figure in summarise("hiera_base_224", {})} == {"-"}
    done = outcomes(failing=("build", "matrix"))
    assert {figure for _, _, figure in summarise("hiera_base_224", done)} == {"-"}
    assert failures(done)[:2] == [
        "matrix torch fp16: no torch fp16",
        "build hiera_base_224 package fp16: no package fp16",
    ]
