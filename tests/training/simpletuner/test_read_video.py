"""Video in SimpleTuner's two files: read, written back, and refused where it cannot be had."""

import dataclasses

import pytest
from comfyui_longcat.training.errors import ConfigError
from comfyui_longcat.training.settings.run import TrainingOptions
from comfyui_longcat.training.simpletuner.read import check_trainable, read_files, read_run
from comfyui_longcat.training.simpletuner.write import write_run

CONFIG = {"model_family": "longcat_video", "model_flavour": "final"}
CLIPS = {"id": "clips", "dataset_type": "video", "instance_data_dir": "/clips", "resolution": 480}
STARTS = {"id": "starts", "dataset_type": "conditioning", "instance_data_dir": "/starts", "caption_strategy": None}
PAIRED = [CLIPS | {"is_i2v": True, "conditioning_data": ["starts"]}, STARTS]


def clips_of(entry, config=CONFIG):
    (each,) = read_run(config, [CLIPS | entry]).sets
    return each.targets


@pytest.mark.parametrize(
    "entry",
    [
        {"video": {"num_frames": 49, "min_frames": 17, "bucket_strategy": "resolution_frames", "frame_interval": 8}},
        {"num_frames": 49, "min_frames": 17, "bucket_strategy": "resolution_frames", "frame_interval": 8},
        {"video": {"num_frames": 49, "bucket_strategy": "resolution_frames"}, "min_frames": 17, "frame_interval": 8},
    ],
    ids=["section", "beside", "both"],
)
def test_the_section_video_says_how_clips_are_taken(entry):
    found = clips_of(entry)
    assert found.dataset_type == "video"
    shape = (found.num_frames, found.min_frames, found.bucket_strategy, found.frame_interval)
    assert shape == (49, 17, "resolution_frames", 8)


def test_without_a_section_the_guides_values_hold():
    found = clips_of({"video": None})
    assert (found.num_frames, found.fps, found.clip_extraction, found.is_i2v) == (93, 15.0, "first", False)
    assert clips_of({"video": {"is_i2v": True, "fps": 24}}).is_i2v is True


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"video": {"num_frame": 93}}, "dataset 'clips', video has a key.*'num_frame' .the nearest is 'num_frames'"),
        ({"video": [93]}, "must be an object"),
        ({"video": {"num_frames": 92}}, "num_frames .* is 92;.* Use 89 or 93"),
        ({"video": {"bucket_strategy": "frames"}}, "must be one of aspect_ratio, resolution_frames"),
        ({"video": {"num_frames": 49}, "num_frames": 93}, "num_frames is 93, and 49 in its section video"),
        ({"fps": 0}, "fps .* is 0"),
        ({"resolution": "832x470"}, "resolution .* is 470; it must be a multiple of 16. Use 464 or 480"),
        ({"resolution": 470}, "multiple of 16"),
        ({"dataset_type": "image", "video": {"num_frames": 93}}, "has video, which is about videos"),
        ({"dataset_type": None, "is_i2v": True}, "has is_i2v, which is about videos"),
    ],
)
def test_what_cannot_be_had_is_refused(entry, words):
    with pytest.raises(ConfigError, match=words):
        clips_of(entry)


def test_start_frames_are_the_references():
    (each,) = read_run(CONFIG, PAIRED).sets
    assert (each.targets.dataset_type, each.targets.is_i2v) == ("video", True)
    assert (each.references.id, each.references.dataset_type, each.references.caption_strategy) == (
        *("starts", "conditioning"),
        "none",
    )


def test_the_evaluation_set_is_a_split_of_its_own():
    held_out = [PAIRED[0] | {"id": "val", "conditioning_data": ["val-starts"]}, STARTS | {"id": "val-starts"}]
    run = read_run(CONFIG | {"eval_dataset_id": "val", "validation_using_datasets": True}, [*PAIRED, *held_out])
    assert [each.targets.id for each in run.sets] == ["clips"]
    assert [(each.targets.id, each.references.id) for each in run.eval_sets] == [("val", "val-starts")]
    marked = read_run(CONFIG, [CLIPS, CLIPS | {"id": "val", "dataset_type": "eval"}])
    assert [each.targets.dataset_type for each in marked.eval_sets] == ["video"]


@pytest.mark.parametrize("paired", [True, False])
def test_written_files_are_read_as_the_same_run(paired):
    data = PAIRED if paired else [CLIPS | {"video": {"num_frames": 49, "is_i2v": True}, "fps": 24}]
    run = read_run(CONFIG, data)
    assert write_run(run)[1] == data
    config, written = write_run(dataclasses.replace(run, config={}, datasets=()))
    assert read_run(config, written).settings == run.settings
    assert written[0]["video"]["num_frames"] == run.sets[0].targets.num_frames
    if paired:
        assert "video" not in written[1] and "num_frames" not in written[1]


def test_a_changed_clip_is_written_where_it_stood():
    section = CLIPS | {"video": {"num_frames": 49, "is_i2v": True}, "fps": 24.0}
    run = read_run(CONFIG, [section])
    changed = dataclasses.replace(run.sets[0].targets, num_frames=9, is_i2v=False, fps=15.0, min_frames=5)
    again = dataclasses.replace(run, sets=(dataclasses.replace(run.sets[0], targets=changed),))
    expected = {"num_frames": 9, "is_i2v": False, "min_frames": 5}
    assert write_run(again)[1] == [section | {"video": expected, "fps": 15.0}]


def test_flags_go_before_the_section_and_leave_pictures_alone(tmp_path):
    (tmp_path / "config.json").write_text('{"model_family": "longcat_video", "num_frames": 33}', encoding="utf-8")
    data = '[{"id": "a", "dataset_type": "video", "instance_data_dir": "/a", "video": {"num_frames": 93},'
    data += ' "conditioning_data": "b"}, {"id": "b", "instance_data_dir": "/b"}]'
    (tmp_path / "multidatabackend.json").write_text(data, encoding="utf-8")
    (each,) = read_files(tmp_path / "config.json", {}).sets
    assert each.targets.num_frames == 93, "the data file goes before config.json"
    run = read_files(tmp_path / "config.json", {"num_frames": 49})
    assert run.sets[0].targets.num_frames == 49 and run.sets[0].references.num_frames == 93
    assert run.model.model_flavour == "final"


def test_the_shift_is_the_familys_own_and_never_none():
    for config in ({}, {"flow_schedule_auto_shift": False}, {"flow_schedule_auto_shift": True}):
        assert (
            read_run(CONFIG | config, [CLIPS]).train.options.flow_schedule_shift == TrainingOptions.flow_schedule_shift
        )
    assert read_run(CONFIG | {"flow_schedule_shift": 5}, [CLIPS]).train.options.flow_schedule_shift == 5.0
    with pytest.raises(ConfigError, match="flow_schedule_shift is 0,.* Give 12"):
        read_run(CONFIG | {"flow_schedule_shift": 0}, [CLIPS])


@pytest.mark.parametrize(
    ("config", "datasets", "words"),
    [
        (CONFIG, [{"id": "a", "instance_data_dir": "/a"}], "longcat_video is trained on dataset_type 'video'"),
        ({"model_flavour": "dev"}, [CLIPS], "longcat_image is trained on dataset_type 'image'"),
        (CONFIG | {"model_flavour": "edit"}, PAIRED, "longcat_video has no such flavour: choose one of final"),
        (CONFIG, [CLIPS | {"conditioning_data": "strats"}, STARTS], "no other dataset of that id"),
    ],
)
def test_combinations_that_cannot_be_trained(config, datasets, words):
    with pytest.raises(ConfigError, match=words):
        check_trainable(read_run(config, datasets))


@pytest.mark.parametrize("datasets", [PAIRED, [CLIPS], [CLIPS | {"is_i2v": True}]])
def test_videos_train_with_start_frames_and_without(datasets):
    check_trainable(read_run(CONFIG, datasets))
