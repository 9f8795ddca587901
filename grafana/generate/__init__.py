"""The dashboards and rules, as code: ``make dashboards`` writes what users load."""
