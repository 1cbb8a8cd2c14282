//! Conversions between rows and types that both engines share.
