//! `input-send-event`: keys, buttons and movements for the guest. No device of this board takes any
//! yet; each is refused as QEMU's microvm refuses it.

use serde_json::json;

use super::command::{Answer, Call, Command, Run};
use crate::qmp::error::Error;
use crate::qmp::schema::{Member, Shape, Type, Union, optional, required};

pub(crate) static COMMANDS: &[Command] = &[Command::new("input-send-event", Run::Now(send))
    .arguments(&EVENTS)
    .does("Presses keys and moves pointers of the guest; no device takes them yet.")];

static EVENTS: Shape = Shape::of(&[
    optional("device", Type::Text).means("the display that they are for"),
    optional("head", Type::Int).means("which of its heads"),
    required("events", Type::List(&Type::Object(&EVENT))).means("what happens, in this order"),
]);
static EVENT: Shape = Shape::tagged(
    &[required("type", Type::Enum(&["key", "btn", "rel", "abs", "mtt"]))],
    Union {
        tag: "type",
        branches: &[
            ("key", &KEY),
            ("btn", &BUTTON),
            ("rel", &MOVE),
            ("abs", &MOVE),
            ("mtt", &TOUCH),
        ],
    },
);
static KEY: Shape = Shape::of(&[required("data", Type::Object(&KEY_DATA))]);
static KEY_DATA: Shape =
    Shape::of(&[required("key", Type::Object(&KEY_VALUE)), required("down", Type::Bool)]);
static KEY_VALUE: Shape = Shape::tagged(
    &[required("type", Type::Enum(&["number", "qcode"]))],
    Union { tag: "type", branches: &[("number", &KEY_NUMBER), ("qcode", &KEY_CODE)] },
);
static KEY_NUMBER: Shape = Shape::of(&[required("data", Type::Int)]);
static KEY_CODE: Shape = Shape::of(&[required("data", Type::Enum(KEY_CODES))]);
static BUTTON: Shape = Shape::of(&[required("data", Type::Object(&BUTTON_DATA))]);
static BUTTON_DATA: Shape =
    Shape::of(&[required("button", Type::Enum(BUTTONS)), required("down", Type::Bool)]);
const AXIS: Member = required("axis", Type::Enum(&["x", "y"]));
static MOVE: Shape = Shape::of(&[required("data", Type::Object(&MOVE_DATA))]);
static MOVE_DATA: Shape = Shape::of(&[AXIS, required("value", Type::Int)]);
static TOUCH: Shape = Shape::of(&[required("data", Type::Object(&TOUCH_DATA))]);
static TOUCH_DATA: Shape = Shape::of(&[
    required("type", Type::Enum(&["begin", "update", "end", "cancel", "data"])),
    required("slot", Type::Int),
    required("tracking-id", Type::Int),
    AXIS,
    required("value", Type::Int),
]);
static BUTTONS: &[&str] = &[
    "left",
    "middle",
    "right",
    "wheel-up",
    "wheel-down",
    "side",
    "extra",
    "wheel-left",
    "wheel-right",
    "touch",
];
/// QEMU's names of keys.
#[rustfmt::skip]
static KEY_CODES: &[&str] = &[
    "unmapped", "shift", "shift_r", "alt", "alt_r", "ctrl", "ctrl_r", "menu", "esc", "1", "2", "3",
    "4", "5", "6", "7", "8", "9", "0", "minus", "equal", "backspace", "tab", "q", "w", "e", "r",
    "t", "y", "u", "i", "o", "p", "bracket_left", "bracket_right", "ret", "a", "s", "d", "f", "g",
    "h", "j", "k", "l", "semicolon", "apostrophe", "grave_accent", "backslash", "z", "x", "c", "v",
    "b", "n", "m", "comma", "dot", "slash", "asterisk", "spc", "caps_lock", "f1", "f2", "f3", "f4",
    "f5", "f6", "f7", "f8", "f9", "f10", "num_lock", "scroll_lock", "kp_divide", "kp_multiply",
    "kp_subtract", "kp_add", "kp_enter", "kp_decimal", "sysrq", "kp_0", "kp_1", "kp_2", "kp_3",
    "kp_4", "kp_5", "kp_6", "kp_7", "kp_8", "kp_9", "less", "f11", "f12", "print", "home", "pgup",
    "pgdn", "end", "left", "up", "down", "right", "insert", "delete", "stop", "again", "props",
    "undo", "front", "copy", "open", "paste", "find", "cut", "lf", "help", "meta_l", "meta_r",
    "compose", "pause", "ro", "hiragana", "henkan", "yen", "muhenkan", "katakanahiragana",
    "kp_comma", "kp_equals", "power", "sleep", "wake", "audionext", "audioprev", "audiostop",
    "audioplay", "audiomute", "volumeup", "volumedown", "mediaselect", "mail", "calculator",
    "computer", "ac_home", "ac_back", "ac_forward", "ac_refresh", "ac_bookmarks", "lang1", "lang2",
    "f13", "f14", "f15", "f16", "f17", "f18", "f19", "f20", "f21", "f22", "f23", "f24",
];

fn send(call: Call<'_>) -> Answer {
    if let Some(device) = call.args.text_if_given("device") {
        return Err(Error::device_not_found(format_args!("Device '{device}' not found")));
    }
    if !call.vmm.guest.run_state().is_running() {
        return Err(Error::generic("VM not running"));
    }
    match call.args.objects("events").next() {
        None => Ok(json!({})),
        Some(event) => Err(Error::generic(format_args!(
            "Input handler not found for event type {}",
            event.text("type")
        ))),
    }
}
