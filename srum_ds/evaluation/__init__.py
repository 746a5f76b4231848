"""Base against trained: pictures drawn anew, judged by an independent checker, compared in pairs."""
