"""From a camera frame to poses on RTSP: logic in plain modules, GStreamer only where bytes are moved."""
