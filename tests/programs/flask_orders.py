"""An application that knows nothing of us: Flask-SQLAlchemy, which has its own session class."""

import sys

from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from prometheus_client import generate_latest
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)


app = Flask(__name__)
app.config["SQLALCHEMY_DATABASE_URI"] = sys.argv[1]
db = SQLAlchemy(app, model_class=Base)


@app.post("/orders")
def order():
    db.session.add(Order())
    db.session.commit()
    return str(len(db.session.scalars(db.select(Order)).all()))


with app.app_context():
    Base.metadata.create_all(db.engine)
client = app.test_client()
assert [client.post("/orders").text for _ in range(3)] == ["1", "2", "3"]
with app.app_context():
    db.engine.dispose()
sys.stderr.write(generate_latest().decode())
