# Roles and databases of the service and of MLflow. PostgreSQL's image runs this once, when it makes
# a new cluster of databases. Neither role can reach the other's database.
make_database() {
    psql --no-psqlrc --quiet --set=ON_ERROR_STOP=1 --username="$POSTGRES_USER" \
        --dbname=postgres --set=role="$1" <<SQL
\set password \`cat /secrets/postgres/$1-password\`
CREATE ROLE :"role" LOGIN PASSWORD :'password';
CREATE DATABASE :"role" OWNER :"role" ENCODING 'UTF8' TEMPLATE template0;
REVOKE CONNECT ON DATABASE :"role" FROM PUBLIC;
SQL
}

make_database caps
make_database mlflow
sync
rm /var/lib/postgresql/data/not-finished # see caps-postgres
