//! In place of the crate of this name, which compiles protobuf from its C++ source for minutes. rmqtt's
//! build asks for it only where no `protoc` is installed, and here one is.

use std::path::PathBuf;

pub fn protoc() -> PathBuf {
    PathBuf::from("protoc")
}
