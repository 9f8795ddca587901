"""What a web application adds: who each request is for, and pages that say how sessions fare."""
